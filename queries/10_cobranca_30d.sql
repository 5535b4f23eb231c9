-- 30 to 59 days overdue, the day's main mailing. The longest overdue are called first.
--
-- The dialer's layout. A view that changes underneath stops the mailing here, not in the middle of the calls.
-- columns: telefone_1;telefone_2;telefone_3;nome;cpf;contrato;produto;valor;vencimento;dias_atraso
-- Reduced to digits and checked; who has no number left is not sent.
-- phones: telefone_1, telefone_2, telefone_3
-- Some people were registered twice; nobody is to be called twice.
-- unique: cpf
-- A quiet day has some 3,000. Far fewer or far more is a fault in the load of the night, not a mailing.
-- min_rows: 500
-- max_rows: 50000
-- max_drop: 70%
SELECT f.telefone_1,
       f.telefone_2,
       f.telefone_3,
       c.nome,
       c.cpf,
       d.contrato,
       d.produto,
       replace(to_char(d.valor, 'FM9999999990.00'), '.', ',') AS valor,
       to_char(d.vencimento, 'DD/MM/YYYY') AS vencimento,
       current_date - d.vencimento AS dias_atraso
FROM contratos AS d
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
WHERE d.situacao = 'aberto'
  AND d.vencimento BETWEEN current_date - 59 AND current_date - 30
  AND d.valor < 10000  -- above that, 40_alto_valor calls
  -- a current agreement is not overdue, and 30_acordo_quebrado calls about a broken one
  AND NOT EXISTS (SELECT FROM acordos AS a WHERE a.contrato = d.contrato AND a.situacao IN ('vigente', 'quebrado'))
  -- paid, and not booked yet
  AND NOT EXISTS (SELECT FROM pagamentos AS p WHERE p.contrato = d.contrato AND p.pago_em >= current_date - 3)
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
ORDER BY d.vencimento, d.valor DESC, d.contrato;
