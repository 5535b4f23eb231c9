-- Who promised to pay today and has not yet. On some days nobody did, and then there is nothing to send.
--
-- columns: telefone_1;telefone_2;nome;contrato;valor;prometido_em
-- phones: telefone_1, telefone_2
-- unique: contrato
-- min_rows: 0
SELECT f.telefone_1,
       f.telefone_2,
       c.nome,
       m.contrato,
       replace(coalesce(m.valor, d.valor)::text, '.', ',') AS valor,
       to_char(m.prometido_em, 'DD/MM/YYYY HH24:MI') AS prometido_em
FROM promessas AS m
JOIN contratos AS d USING (contrato)
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
WHERE m.para_dia = current_date
  AND d.situacao = 'aberto'
  AND NOT EXISTS (SELECT FROM pagamentos AS p WHERE p.contrato = d.contrato AND p.pago_em >= m.prometido_em::date)
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
ORDER BY m.prometido_em, m.contrato, m.promessa_id;
